"""Cut a Hugging Face model into stages that run its own forward, and put the stages' weights together again."""

from holdfast.partition.lora import Lora, is_adapter, save_adapter
from holdfast.partition.module import StageModule
from holdfast.partition.plan import Plan, Range, costs_of, cut, make_plan, plan_from, planned
from holdfast.partition.skeleton import prepare_config
from holdfast.partition.source import ModelSource, describe
from holdfast.partition.weights import initial_weights, model_writer, save_model, whole_model

__all__ = [
    "Lora",
    "ModelSource",
    "Plan",
    "Range",
    "StageModule",
    "costs_of",
    "cut",
    "describe",
    "initial_weights",
    "is_adapter",
    "make_plan",
    "model_writer",
    "plan_from",
    "planned",
    "prepare_config",
    "save_adapter",
    "save_model",
    "whole_model",
]
