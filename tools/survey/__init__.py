"""Whole libraries of models, each looked at once: what is found, and what is missed."""

from tools.survey.page import models, page, summary
from tools.survey.result import Result
from tools.survey.walk import choose, survey

__all__ = ["Result", "choose", "models", "page", "summary", "survey"]
