"""The planner: from a budget and data to one decision for every site."""

from ksurgeon.planner.budget import Budget
from ksurgeon.planner.options import Option, SiteOptions
from ksurgeon.planner.search import Planning, plan

__all__ = ["Budget", "Option", "Planning", "SiteOptions", "plan"]
