"""Benchmarks. Threads are set here, before any of them imports torch."""

from pipeline.workflow import process

process.tune()
