"""Formulations for TPUs, which fetch single pixels slowly but select and multiply fast.

No TPU has run them: they are compiled ahead of time for TPU v5e, and tests hold their results,
computed on a CPU, equal to those of the formulations for other platforms.
"""
