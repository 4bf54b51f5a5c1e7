"""Models that a Python function makes: ``package.module:function``."""

from torch import nn

from ksurgeon.errors import ModelNotFoundError
from ksurgeon.models.functions import find_function, working_directory
from ksurgeon.models.source import Source

__all__ = ["build"]


def build(source: Source) -> nn.Module:
    """What the function returns when it is called with ``source.options``.

    The working directory is searched for the module first.

    Raises:
        ModelNotFoundError: the module or function is not there, it raised, or it returned no module.
    """
    function = find_function(source.name, ModelNotFoundError)
    with working_directory():
        try:
            model = function(**source.options)
        except Exception as error:
            raise ModelNotFoundError(
                f'"{source.name}": the function raised {type(error).__name__}: {error}'
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelNotFoundError(
            f'"{source.name}" returned {type(model).__name__}; expected a torch.nn.Module'
        )
    return model

