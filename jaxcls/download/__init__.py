"""Published files from the network, whole or not at all, and kept in a cache.

    path = fetch(find_weights("torchvision/resnet50:v2"))  # jaxcls.models.weights.catalogue
    path = fetch(Cifar10.archive)  # of a dataset: jaxcls.data.formats.archives

    $JAXCLS_CACHE, else $XDG_CACHE_HOME/jaxcls, else ~/.cache/jaxcls
      weights/torchvision--resnet50-v2.pth           what was published, byte for byte
             /torchvision--resnet50-v2.pth.sha256    its hash, as `sha256sum -c` reads it
      datasets/cifar10/cifar-10-binary.tar.gz
                      /cifar-10-binary.tar.gz.sha256

Nothing here imports JAX: the processes that load data need the cache too.
"""

from jaxcls.download.cache import Published, cache_folder, cached_path, fetch
