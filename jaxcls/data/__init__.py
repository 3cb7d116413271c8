"""Host side: from a source of records to whole uint8 batches. No JAX arrays here."""

from jaxcls.data.sources import ArraySource, Dataset, Digits, Record, Source

__all__ = ["ArraySource", "Dataset", "Digits", "Record", "Source"]
