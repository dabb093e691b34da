"""How do tests see whether an object keeps all that it needs in its storage?

They run twice: with an object that stays resident, and with one that hibernates after each turn.
"""

from __future__ import annotations

from functools import partial

from actors import LocalBackend

Hibernating = partial(LocalBackend, always_evict=True)
