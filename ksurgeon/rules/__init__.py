"""Rules: which sites of a model get which K-matrix, and the plan that follows from one."""

from ksurgeon.rules.load import builtin_rules, data_folder, load_rule
from ksurgeon.rules.plan import Decision, Plan, make_plan, require_matches
from ksurgeon.rules.schema import Insertion, Replacement, Rule, Where

__all__ = [
    "Decision",
    "Insertion",
    "Plan",
    "Replacement",
    "Rule",
    "Where",
    "builtin_rules",
    "data_folder",
    "load_rule",
    "make_plan",
    "require_matches",
]
