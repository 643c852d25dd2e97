"""What belongs to a container and is not in CRIU's images: files of its rootfs, /dev/shm, its log, message queues."""
