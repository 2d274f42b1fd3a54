"""Who starts the members of a run and notices that they died."""

from __future__ import annotations

from holdfast.launch.inprocess import Deadlock, Glance, Hooks, InProcess, Network, Timing
from holdfast.launch.realtime import RealTime, Room

__all__ = ["Deadlock", "Glance", "Hooks", "InProcess", "Network", "RealTime", "Room", "Timing"]
