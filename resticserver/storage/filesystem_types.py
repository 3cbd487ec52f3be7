"""
The types of file systems, and what each type guarantees: whether the times of its directories show every change, and how it
compares names.

Linux has the type in C{/proc}; without that it is never known.
"""

from __future__ import annotations

#: Local file systems that give a directory a new modification and change time whenever a name in it is added, is removed or
#: comes to mean another file, and show them at once. On those that other machines write to (NFS, SMB, 9p, clusters') and on
#: FUSE the times may be cached, come from another clock or not change at all; FAT has no change time.
_KEEP_TIMES = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "ramfs", "reiserfs", "tmpfs", "xfs", "zfs")
)

#: File systems with one journal for all directories, which a change in several of them enters as a whole; and those where
#: nothing is durable.
_ONE_TRANSACTION = frozenset(("ext3", "ext4", "xfs", "tmpfs", "ramfs"))

#: File systems of other machines, or of a host that others may use.
_SHARED = frozenset("9p afs ceph cifs gfs2 glusterfs lustre ncpfs nfs nfs4 ocfs2 smb3 smbfs virtiofs".split())

#: File systems that find a name in other forms only in directories that fold case: there in all forms that Unicode folds.
_ONLY_CASE = frozenset(
    "bcachefs btrfs erofs ext2 ext3 ext4 f2fs jfs nilfs2 overlay ramfs reiserfs squashfs tmpfs xfs".split()
)

#: File systems that may compare Unicode forms and nothing else: ZFS, and those of other machines, where they may be ZFS.
_ALSO_FORMS = frozenset(("9p", "afs", "ceph", "gfs2", "glusterfs", "lustre", "nfs", "nfs4", "ocfs2", "virtiofs", "zfs"))


def type_of(fd: int) -> str | None:
    """
    The type of the file system that an open file lies on, as the kernel names it (C{ext4}, C{nfs4}, C{fuse.sshfs});
    C{None} where it is not known.

    The file's mount is found by its number: the device's would not do, subvolumes of btrfs have their own.
    """
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
            number = next(line.split()[1] for line in file if line.startswith(b"mnt_id:"))
        with open("/proc/self/mountinfo", "rb") as file:
            # proc(5): the type follows a hyphen, which ends a row of optional fields.
            fields = next(fields for fields in map(bytes.split, file) if fields[0] == number)
        return fields[fields.index(b"-", 6) + 1].decode("ascii", "replace")
    except (OSError, StopIteration, LookupError, ValueError):
        return None


def folds_only_case(type_name: str | None) -> bool:
    """Whether directories on a file system of this type find a name in other forms only if they fold case."""
    return type_name in _ONLY_CASE


def folds_only_forms(type_name: str | None) -> bool:
    """Whether directories that do not fold case find a plain ASCII name in no other form."""
    return type_name in _ONLY_CASE or type_name in _ALSO_FORMS


def keeps_times(fd: int) -> bool:
    """Whether the times of an open directory show every change of its names."""
    return type_of(fd) in _KEEP_TIMES


def stamps_renames(fd: int) -> bool:
    """Whether the change time of a file on the file system of an open file shows when it was last renamed."""
    type_name = type_of(fd)
    return type_name in _KEEP_TIMES or type_name == "overlay"


def renames_at_once(fd: int) -> bool:
    """
    Whether a rename from one directory to another is one transaction of the journal, on the file system of an open file: then
    an fsync of either directory makes the change in both durable.
    """
    return type_of(fd) in _ONE_TRANSACTION


def is_local(fd: int) -> bool:
    """
    Whether an open file lies on a file system that only this machine writes to, and whose locks and shared memory work. FUSE
    counts as none, because it may be anything.
    """
    type_name = type_of(fd)
    return type_name is not None and type_name not in _SHARED and not type_name.startswith("fuse")
