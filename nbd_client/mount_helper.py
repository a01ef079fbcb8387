"""``mount.blockgate`` and ``umount.blockgate``: what mount(8), umount(8) and ``/etc/fstab`` call for the type ``blockgate``.

``mount -t blockgate SPEC DIR -o OPTIONS`` runs ``/sbin/mount.blockgate SPEC DIR [-sfnv] [-N ns] [-o OPTIONS] [-t TYPE]``
(mount(8), EXTERNAL HELPERS). The mount is marked ``helper=blockgate``, so ``umount DIR`` runs
``/sbin/umount.blockgate DIR [-nlfvr] [-N ns] [-t TYPE]`` (umount(8)). A thin adapter: the work is done by the
functions that ``blockgate-nbd`` calls.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from nbd_client.control import DEFAULT_RUN_DIR
from nbd_client.errors import BlockgateError, InvalidOption, UsageError
from nbd_client.mount import Via, mount_source, subtype, umount
from nbd_client.options import helper_options, parse_options

# mount(8), EXIT STATUS.
_WRONG_USAGE, _FAILED = 1, 32
_TYPE = "blockgate"


def mount_main(argv: Sequence[str] | None = None) -> int:
    """``mount.blockgate``; returns mount(8)'s exit status."""
    return _told("mount.blockgate", lambda: _mount(sys.argv[1:] if argv is None else argv))


def umount_main(argv: Sequence[str] | None = None) -> int:
    """``umount.blockgate``; returns umount(8)'s exit status."""
    return _told("umount.blockgate", lambda: _umount(sys.argv[1:] if argv is None else argv))


def _mount(argv: Sequence[str]) -> None:
    parser = _Parser(prog="mount.blockgate", description="Called by mount(8).")
    parser.add_argument("spec")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("-s", action="store_true", help="tolerate unknown options: not done")
    parser.add_argument("-f", action="store_true", dest="fake", help="check the arguments, mount nothing")
    parser.add_argument("-n", action="store_true", help="no mtab: there is none")
    parser.add_argument("-v", action="store_true", dest="verbose")
    parser.add_argument("-N", dest="namespace")
    parser.add_argument("-o", dest="options", action="append", default=[])
    parser.add_argument("-t", dest="kind", default=_TYPE)
    arguments = parser.parse_args(argv)
    _no_namespace(arguments.namespace)
    helper, rest = helper_options(",".join(arguments.options))
    if helper.get("via", "auto") not in Via.__members__:
        raise InvalidOption(f"via={helper['via']}: auto, kernel or fuse")
    base, _, suffix = arguments.kind.partition(".")
    if base != _TYPE:
        raise InvalidOption(f"-t {arguments.kind}: this is for {_TYPE}, {_TYPE}.nbd and {_TYPE}.fuse")
    via = subtype(f"erofs.{suffix}" if suffix else "erofs", Via(helper.get("via", "auto")))
    options = parse_options(",".join((*rest, f"helper={_TYPE}")))
    if arguments.fake:
        return
    way = mount_source(
        arguments.spec,
        arguments.mountpoint,
        options,
        via=via,
        gateway=helper.get("gateway"),
        run_dir=_run_dir(),
    )
    if arguments.verbose:
        print(f"mounted {arguments.spec} on {arguments.mountpoint} ({way})")


def _umount(argv: Sequence[str]) -> None:
    parser = _Parser(prog="umount.blockgate", description="Called by umount(8).")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("-n", action="store_true", help="no mtab: there is none")
    parser.add_argument("-l", action="store_true", dest="lazy")
    parser.add_argument("-f", action="store_true", dest="force")
    parser.add_argument("-v", action="store_true", help="there is nothing to tell")
    parser.add_argument("-r", action="store_true", help="read-only it is anyway")
    parser.add_argument("-N", dest="namespace")
    parser.add_argument("-t", dest="kind")
    arguments = parser.parse_args(argv)
    _no_namespace(arguments.namespace)
    if arguments.lazy or arguments.force:
        raise InvalidOption(
            "-l and -f would leave a device behind whose mount is gone; end what uses the mount"
        )
    umount(arguments.mountpoint, run_dir=_run_dir())


class _Parser(argparse.ArgumentParser):
    """Wrong usage is an error like others: mount(8) knows another exit status for it than argparse."""

    def error(self, message: str) -> NoReturn:
        raise InvalidOption(message)


def _told(name: str, work: Callable[[], None]) -> int:
    try:
        work()
    except BlockgateError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return _WRONG_USAGE if isinstance(error, UsageError) else _FAILED
    return 0


def _no_namespace(namespace: str | None) -> None:
    if namespace is not None:
        raise InvalidOption("-N: another mount namespace is not supported; enter it first (nsenter --mount)")


def _run_dir() -> Path:
    return Path(os.environ.get("BLOCKGATE_NBD_RUN_DIR", DEFAULT_RUN_DIR))


if __name__ == "__main__":
    sys.exit(umount_main() if Path(sys.argv[0]).name.startswith("umount") else mount_main())
