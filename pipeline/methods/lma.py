"""LMA. Desai et al. 2021, "Semantically Constrained Memory Allocation (SCMA) for Embedding in Efficient Recommendation
Systems", arXiv 2103.06124. The equations are in `pipeline.embeddings.minhash_memory`.
"""

from pipeline.embeddings.minhash_memory import build, derive, find

__all__ = ["build", "derive", "find"]
