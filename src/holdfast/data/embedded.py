"""A corpus that every Python has: its language reference, which ships as text with the standard library.

About 380 KB of English on 3.11; other versions have another text, so a run records the digest. Topics repeat one another
(`specialnames` holds `customization` whole), hence a paragraph counts once, or validation text would stand in training text.
"""

from __future__ import annotations

import hashlib
import platform
import re

from holdfast.errors import DataError

HEADING = re.compile(r"(?m)^(?=\S[^\n]*\n(?:\*{3,}|={3,}|-{3,}|~{3,})$)")


def embedded_documents() -> tuple[list[str], str]:
    """The sections of the reference in a fixed shuffled order, and where they came from."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python was installed without pydoc_data, the source of the embedded corpus; "
            "install the whole standard library, or give --data a file or 'synthetic'"
        ) from None
    seen: set[str] = set()
    documents = []
    for name in sorted(topics):
        for section in HEADING.split(topics[name]):
            paragraphs = [paragraph for paragraph in section.strip("\n").split("\n\n") if paragraph.strip() not in seen]
            seen.update(paragraph.strip() for paragraph in paragraphs)
            if paragraphs:
                documents.append("\n\n".join(paragraphs) + "\n")
    documents.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    return documents, f"pydoc_data.topics of Python {platform.python_version()}"
