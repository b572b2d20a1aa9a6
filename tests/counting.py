"""Counters of tokens that other processes find by name."""

import os


def words(text: str) -> int:
    return len(text.split())


def characters(text: str) -> int:
    return len(text)


def fatal(text: str) -> int:
    os._exit(9)
