"""Host side: from a source of records to whole uint8 batches. No JAX arrays here."""

from jaxcls.data.sources import (
    DATASETS,
    ArraySource,
    Dataset,
    Digits,
    Record,
    Source,
    create_dataset,
)

__all__ = [
    "DATASETS",
    "ArraySource",
    "Dataset",
    "Digits",
    "Record",
    "Source",
    "create_dataset",
]
