"""The stages as processes. Threads are set here, before any stage imports torch."""

from pipeline.workflow import process

process.tune()
