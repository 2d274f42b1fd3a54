"""Attacks, the campaigns that time them, and the dishonest worker that carries them out.

attack     Attack (an author's one small class), Scene      tensors    the attacks on tensors
campaign   when and where it strikes                        protocol   lies about everything else
worker     the wrapper around an honest worker              ledger     the ground truth of who lied about what
registry   from a name or a file to an attack               lie        what a wrapper does to messages and state
targeted   backdoors, planted in weights or gradients
"""

from holdfast.attacks.attack import Attack, Misconduct, Scene
from holdfast.attacks.campaign import Campaign
from holdfast.attacks.ledger import Ledger
from holdfast.attacks.lie import Lie
from holdfast.attacks.registry import ATTACKS, known_attacks, resolve_attack
from holdfast.attacks.worker import DishonestWorker

__all__ = [
    "ATTACKS",
    "Attack",
    "Campaign",
    "DishonestWorker",
    "Ledger",
    "Lie",
    "Misconduct",
    "Scene",
    "known_attacks",
    "resolve_attack",
]
