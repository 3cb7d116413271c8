"""Operations written out for CPUs, where XLA runs them far slower than their arithmetic asks for.

choice.py alone decides which platform computes what.
"""
