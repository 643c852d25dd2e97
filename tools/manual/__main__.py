"""Writes the generated files of the manual: `make docs`."""

from tools import manual


def main() -> None:
    """Write what has changed, and remove what nothing makes any more."""
    for path, text in manual.rendered().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"docs: wrote {path.relative_to(manual.ROOT)}")
    for path in manual.stale():
        path.unlink()
        print(f"docs: removed {path.relative_to(manual.ROOT)}")


if __name__ == "__main__":
    main()
