"""
What kind of file system something lies on, and whether the times of its directories can be believed.

Linux says so in C{/proc}; where there is none the answer is always that it cannot be told.
"""

from __future__ import annotations

#: Local file systems that put a new modification and change time on a directory whenever a name in it comes, goes or
#: comes to mean another file, and tell it at once. On those that other machines write to (NFS, SMB, 9p, clusters') and
#: on FUSE the times may be cached, be another clock's or not move at all; FAT has no change time.
_KEEP_TIMES = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs")
)

#: File systems of other machines, or of a host that others may use.
_SHARED = frozenset(
    (
        "9p",
        "afs",
        "ceph",
        "cifs",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "smbfs",
        "virtiofs",
    )
)

#: File systems on which a name has no other form, but where a directory folds case: there in all that Unicode calls so.
_ONLY_CASE = frozenset(
    (
        *(
            "bcachefs",
            "btrfs",
            "erofs",
            "ext2",
            "ext3",
            "ext4",
            "f2fs",
            "jfs",
            "nilfs2",
            "overlay",
            "ramfs",
            "reiserfs",
        ),
        *("squashfs", "tmpfs", "xfs"),
    )
)

#: File systems that may compare Unicode forms and nothing else: ZFS, and those of other machines, which may be ZFS there.
_ALSO_FORMS = frozenset(("9p", "afs", "ceph", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "ocfs2", "virtiofs", "zfs"))


def type_of(fd: int) -> str | None:
    """
    The type of the file system that an open file lies on, in the kernel's words (C{ext4}, C{nfs4}, C{fuse.sshfs});
    C{None} where that cannot be told.

    The file's mount is found by its number: the device's would not do, subvolumes of btrfs have their own.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            number = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as file:
            # proc(5): the type stands behind a hyphen, which ends a row of optional fields.
            fields = next(fields for fields in map(bytes.split, file) if fields[0] == number)
        return fields[fields.index(b"-", 6) + 1].decode("ascii", "replace")
    except (OSError, StopIteration, LookupError, ValueError):
        return None


def folds_only_case(kind: str | None) -> bool:
    """Whether directories on a file system of this type find a name in other forms only if they fold case."""
    return kind in _ONLY_CASE


def folds_only_forms(kind: str | None) -> bool:
    """Whether directories that do not fold case find a plain ASCII name in no other form."""
    return kind in _ONLY_CASE or kind in _ALSO_FORMS


def keeps_times(fd: int) -> bool:
    """Whether the times of an open directory tell every change of its names."""
    return type_of(fd) in _KEEP_TIMES


def is_local(fd: int) -> bool:
    """
    Whether an open file lies on a file system that only this machine writes to, and whose locks and shared memory work; that
    cannot be told of FUSE, which counts as none.
    """
    kind = type_of(fd)
    return kind is not None and kind not in _SHARED and not kind.startswith("fuse")
