"""A configuration for Parsl's own tests, as they take it: our executor on two slots of this machine."""

from __future__ import annotations

from parsl.config import Config

from windlass.parsl import WindlassExecutor


def fresh_config() -> Config:
    """What Parsl's tests load once for all."""
    return Config(executors=[WindlassExecutor(cores=2, max_pilots=1)], strategy="none")


config = fresh_config()
