"""`python -m actors`: the command line for those who look after durable objects."""

from __future__ import annotations
