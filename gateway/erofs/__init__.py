"""Tar layers in, EROFS metadata out. Pure: no file, socket or loop is touched here.

A layer's tar passes once through ``tarstream`` while it is being registered; what remains of it is a table of
contents (``toc``). Tables of all layers, base first, become one ``tree``; ``writer`` turns the tree into the
metadata of a hybrid device. ``superblock`` and ``validate`` judge metadata that somebody else wrote.
"""
