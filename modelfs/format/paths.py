"""Which paths and symlinks a sealed tree may hold (docs/FORMAT.md section 4). Pure strings."""

from collections.abc import Mapping

from modelfs.format.limits import MAX_COMPONENT_SIZE, MAX_PATH_SIZE, MAX_SYMLINK_HOPS


def check_path(path: str) -> str:
    """Return `path`, or raise ValueError: "" (the root), or components joined by "/"."""
    if path == "":
        return path
    try:
        encoded = path.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("a path is not valid UTF-8") from exc
    if len(encoded) > MAX_PATH_SIZE:
        raise ValueError(f"a path is longer than {MAX_PATH_SIZE} bytes")
    if b"\0" in encoded:
        raise ValueError("a path holds a NUL")
    for component in encoded.split(b"/"):
        if component in (b"", b".", b".."):
            raise ValueError("a path is absolute or holds an empty component, '.' or '..'")
        if len(component) > MAX_COMPONENT_SIZE:
            raise ValueError(f"a name is longer than {MAX_COMPONENT_SIZE} bytes")
    return path


def check_target(target: str) -> str:
    """Return a symlink's `target`, or raise ValueError; where it leads is `check_symlink`'s question."""
    try:
        encoded = target.encode()
    except UnicodeEncodeError as exc:
        raise ValueError("a symlink's target is not valid UTF-8") from exc
    if not 1 <= len(encoded) <= MAX_PATH_SIZE or b"\0" in encoded:
        raise ValueError(f"a symlink's target is not 1 to {MAX_PATH_SIZE} bytes without NUL")
    if target.startswith("/"):
        raise ValueError("a symlink's target is absolute")
    return target


def parent_path(path: str) -> str:
    """The directory that holds `path` ("" for the root's children)."""
    return path.rpartition("/")[0]


def check_symlink(path: str, symlinks: Mapping[str, str]) -> None:
    """Follow the symlink at `path` as a kernel would and raise ValueError if it ever leaves the root.

    Args:
        path: A key of `symlinks`.
        symlinks: Every symlink of the tree, path to target.

    A lexical check is not enough: `a/s/../..` climbs from where `s` points to, not from `a`.
    """
    here: list[str] = [part for part in parent_path(path).split("/") if part]
    todo = symlinks[path].split("/")[::-1]
    hops = 1
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not here:
                raise ValueError("a symlink leads out of the tree")
            here.pop()
            continue
        target = symlinks.get("/".join([*here, part]))
        if target is None:
            here.append(part)
            continue
        hops += 1
        if hops > MAX_SYMLINK_HOPS:
            raise ValueError(f"a symlink goes through more than {MAX_SYMLINK_HOPS} links")
        todo.extend(target.split("/")[::-1])
