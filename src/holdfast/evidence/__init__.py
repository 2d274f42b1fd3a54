"""Evidence: who signed what, written down so that somebody who was not there can check it later.

    Identity --> sign_header --> Header on the board --> Notary --> EvidenceLog --> evidence.jsonl --> audit, without torch

Nothing in this package imports torch.
"""
