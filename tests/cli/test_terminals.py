"""Whatever the terminal, the environment and the signals are: words to read, and an honest status."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

import ksurgeon
from ksurgeon.cli import convert as converting
from ksurgeon.cli.interrupts import Interrupts
from ksurgeon.errors import KsurgeonError
from ksurgeon.kernels import chosen_backend, cpu
from tests import zoo

EVIL = "\x1b]0;pwn\x07\x9b31m\u202e[link=https://evil.example]x[/link][/]\r\x08"
HIDDEN = ("\x1b", "\x07", "\x9b", "\u202e", "\r", "\x08")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = ksurgeon.replace_modules(zoo.mlp().eval(), "low_rank", zoo.example("mlp"), source="tests.zoo:mlp")
    return ksurgeon.save(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_encoding_can_show_a_report(run, saved, monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert run("show", saved).status == 0
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert ("→" in text or "->" in text) and "Replaced" in text and "distil before use" in text


@pytest.fixture
def hostile(saved, tmp_path):
    record = json.loads((saved / "ksurgeon.json").read_text())
    record["source"]["name"], record["rules"], record["warnings"] = EVIL, [EVIL], [EVIL]
    record["operations"][0]["path"] = EVIL
    record["outcome"]["device"], record["outcome"]["parts"] = EVIL, [EVIL]
    record["outcome"]["found"] = [{"kind": EVIL, "found": 1, "replaced": 0, "left": {EVIL: 1}}]
    training = {"teacher": EVIL, "data": EVIL, "examples": 1, "steps": 1, "batch": 1, "seconds": 1.0}
    record["trainings"] = [training | {"after": {EVIL: 1.0}}]
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "ksurgeon.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("terminal", [False, True])
def test_escapes_in_a_record_do_not_reach_the_terminal(run, hostile, monkeypatch, terminal):
    from ksurgeon.cli.console import out

    monkeypatch.setattr(out, "_force_terminal", terminal)
    monkeypatch.setattr(out, "_color_system", out._color_system if terminal else None)
    done = run("show", "evil", "--all")
    assert done.status == 0, done.err
    for letter in HIDDEN:
        assert letter not in done.out.replace("\x1b[", "") if terminal else letter not in done.out
    assert "]0;pwn" in done.out and "\x1b]" not in done.out and "\\x1b" in done.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", EVIL), ("find", EVIL), ("convert", "tests.zoo:mlp", "--rule", EVIL), ("revert", EVIL),
        ("rules", "show", EVIL), (EVIL,), ("show", "evil", "--json"), ("show", "evil", f"--{EVIL}"),
        ("convert", "tests.zoo:mlp", "--rule", "linear", "-o", f"{EVIL}{'x' * 300}"),
        ("rules", "show", "odd.toml"),
    ],
)  # fmt: skip
def test_escapes_in_names_and_rules_do_not_either(run, hostile, arguments):
    rule = "schema = 1\nname = 'odd'\n# \x9b31m \u202e\n[[replace]]\nfind = 'linear'\n"
    (hostile / "odd.toml").write_text(f"{rule}with = {{ structure = 'dense' }}\n")
    done = run(*arguments)
    assert done.out + done.err and not any(letter in done.out + done.err for letter in HIDDEN)


HOME_IS_A_FILE = {
    "convert": ("convert", "nowhere:model", "--rule", "linear", "--output=~/x"),
    "plan": ("plan", "nowhere:model", "-b", "params=0.5", "-d", "nothing", "--output=~/x.toml"),
    "plot": ("plan", "nowhere:model", "-b", "params=0.5", "-d", "nothing", "--plot=~/x.png"),
    "export": ("export", "nowhere:model", "--output=~/x.onnx"),
    "revert": ("revert", "nowhere", "--output=~/x"),
    "distill": ("distill", "model", "-d", "nothing", "--output=~/x"),
    "finetune": ("finetune", "model", "-d", "nothing", "--output=~/x"),
    "run": ("run", "recipe.toml", "--output=~/x"),
}


@pytest.mark.parametrize("case", HOME_IS_A_FILE)
def test_a_place_that_cannot_be_written_is_told_before_the_work(run, saved, tmp_path, monkeypatch, case):
    (tmp_path / "home").write_text("mine")
    (tmp_path / "model").symlink_to(saved)
    (tmp_path / "recipe.toml").write_text(
        'schema = 1\nname = "r"\nprepare = "nowhere:prepare"\n[model]\nname = "nowhere:model"\n'
        '[[variants]]\nname = "v"\nrule = "linear"\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    done = run(*HOME_IS_A_FILE[case])
    said = " ".join(done.err.split())
    assert done.status == 1 and "nowhere" not in said, said
    assert "home is a file" in said or "there is no folder" in said, said
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KSURGEON_BACKEND", "garbage"), ("KSURGEON_TUNE", "no"), ("KSURGEON_CPU_ISA", "mmx"),
        ("KSURGEON_CPU_LIBRARY", "nowhere.so"),
    ],
)  # fmt: skip
def test_an_environment_that_makes_no_sense_is_told_at_once(run, monkeypatch, name, value):
    monkeypatch.setattr(converting, "run", lambda *_: pytest.fail("the work began"))
    monkeypatch.setenv(name, value)
    done = run("convert", "tests.zoo:mlp", "--rule", "linear")
    assert done.status == 1 and f"{name}='{value}'" in done.err


def test_a_library_that_was_named_and_cannot_be_loaded_is_no_reason_for_another(monkeypatch):
    monkeypatch.setenv("KSURGEON_CPU_LIBRARY", "junk.so")
    monkeypatch.setattr(cpu, "why_missing", lambda: "junk.so cannot be loaded")
    with pytest.raises(KsurgeonError, match=r"junk\.so cannot be loaded"):
        chosen_backend()


def test_the_first_signal_interrupts_and_the_others_do_not_disturb():
    before = signal.getsignal(signal.SIGINT)
    try:
        with Interrupts() as interrupts:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                signal.pthread_sigmask(signal.SIG_BLOCK, [])
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])
        assert interrupts.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # a traceback at the end helps nobody
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_signals_are_as_they_were_after_a_command_that_none_disturbed():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


MAIN = f"{sys.executable} -c 'from ksurgeon.cli import main; main()'"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="asks for /dev/full")
@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (f"{MAIN} rules <&- >&-", 0, ""),
        (f"{MAIN} rules > /dev/full", 1, "standard output cannot be written: No space left"),
        (f"{MAIN} rules nonsense 2>&-", 2, ""),
    ],
)
def test_streams_that_are_closed_or_full(command, status, said):
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == status and said in done.stderr and "Traceback" not in done.stderr


def test_nothing_to_read_an_answer_from(run, saved, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ksurgeon.json").write_text((saved / "ksurgeon.json").read_text())
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115 -- as a closed one becomes
    done = run("convert", "tests.zoo:mlp", "--rule", "linear", "-o", "out")
    assert done.status == 1 and "--yes" in done.err


def test_without_a_source_nothing_is_promised(run, monkeypatch):
    real = converting.save

    def forgetful(model, target, **options):
        from ksurgeon.surgery.record import record_of

        record_of(model).source = None
        return real(model, target, **options)

    monkeypatch.setattr(converting, "save", forgetful)
    done = run("convert", "tests.zoo:mlp", "--rule", "low_rank", "-o", "out")
    assert done.status == 0, done.err
    assert "model=" in done.out and "ksurgeon revert out" not in done.out
