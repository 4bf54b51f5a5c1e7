"""Whole libraries of models, each looked at once: what is found, and what is missed."""

from ksurgeon.survey.page import page, summary
from ksurgeon.survey.result import Result
from ksurgeon.survey.walk import choose, survey

__all__ = ["Result", "choose", "page", "summary", "survey"]
