"""Attacks, the campaigns that time them, and the dishonest worker that carries them out.

attack     Attack (an author's one small class), Scene      tensors    attacks on a whole tensor
campaign   when and where it strikes                        sparse     on a few entries of one
worker     the wrapper around an honest worker              adaptive   that learn from the run
registry   from a name or a file to an attack               disguise   that hide another attack
ledger     the ground truth of who lied about what          protocol   lies about what is said of a claim
lie        what a wrapper does to messages and state        state      about gradients, updates, shadows, states handed over
                                                            laziness   instead of work
                                                            timing     too late, once more, never
                                                            collusion  of both holders of a stage
                                                            targeted   backdoors, in weights or gradients
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
