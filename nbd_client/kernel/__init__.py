"""The kernel's NBD driver: generic netlink where there is one, ioctl where not, and what sysfs tells."""
