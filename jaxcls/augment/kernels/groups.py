"""Rows of a batch that may be mixed with each other without moving between devices."""

LARGEST_GROUP = 16
"""Rows of a group at most: enough partners for an image, few enough to lie on one device."""

FEWEST_GROUPS = 8
"""Groups that a batch of 64 or more is split into at least, so that 8 devices share them."""


def group_rows(batch: int) -> int:
    """Returns how many neighbouring rows of a batch make up a group.

    Operations among the rows of a group keep every image where it is: they lie on one device
    as long as each device holds a multiple of that many rows. It depends on the size of the
    global batch alone, never on the devices, and so does the result.

    Args:
      batch: images in the global batch, 1 or more.

    Returns:
      The largest power of two up to 16 that divides the batch and, if the batch is 64 or
      more, leaves at least 8 groups. 1 for odd batches.
    """
    rows = 1
    while (
        2 * rows <= LARGEST_GROUP
        and batch % (2 * rows) == 0
        and (batch < 64 or batch >= FEWEST_GROUPS * 2 * rows)
    ):
        rows *= 2
    return rows
