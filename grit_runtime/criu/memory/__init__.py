"""Moving the memory of a container by many workers, past CRIU, which does it with one (docs/memory.md).

At a dump CRIU is given links to /dev/null for its pages images, and the memory that its pagemaps name is read from the
frozen processes afterwards. At a restore it is shown pagemaps without the large mappings, and these are filled in the
stopped processes afterwards. What lies on disk are CRIU's ordinary images.
"""
