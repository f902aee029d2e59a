"""The garbage of a store: blobs that no version of any tenant names."""

from promptdial.prompts.store.blobs import BlobFiles
from promptdial.prompts.store.index import Index


def collect(index: Index, blobs: BlobFiles) -> tuple[int, int]:
    """Take the files away.

    Under the write lock: nobody places a blob that is about to be named.

    Returns:
        How many they were, and their bytes.

    Raises:
        StoreError, NoSpace, FileFailed: They cannot be taken away.
    """
    with index.writing() as connection:
        rows = connection.execute("SELECT DISTINCT digest FROM versions")
        named = {digest for (digest,) in rows.fetchall()}
        sizes = blobs.sizes()
        gone = sizes.keys() - named
        blobs.remove(gone)
    return len(gone), sum(sizes[item] for item in gone)
