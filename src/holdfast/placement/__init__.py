"""Placement: which machine carries which stage, how long a step will take, and when to change that."""

from __future__ import annotations

from holdfast.placement.place import Layers, Load, Machine, Names, Placement, place, predict

__all__ = ["Layers", "Load", "Machine", "Names", "Placement", "place", "predict"]
