"""Makes ftrain/models/networks.tsv, the table that `ftrain models` shows, from the installed torchvision and timm.

    python tools/make_network_table.py

Run it when a new version of either has other networks; tests/models/test_table.py says when that is. It takes some
minutes, because every network is built, without its data.
"""

from ftrain.models import table
from ftrain.models.catalogue import input_size, names, smallest_size
from ftrain.models.spelling import is_timm
from ftrain.models.structure import parameter_count


def main() -> None:
    everything = [*names(), *names("timm/*")]
    versions = ", ".join(f"{library} {table.installed(library)}" for library in ("torchvision", "timm"))
    lines = [f"# {versions}", "name\tparameters\tsmallest size\tinput size"]
    for count, name in enumerate(everything, start=1):
        smallest = "" if is_timm(name) else smallest_size(name)
        lines.append(f"{name}\t{parameter_count(name)}\t{smallest}\t{input_size(name)}")
        print(f"\r{count} of {len(everything)}", end="", flush=True)
    table.FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"\nwrote {table.FILE}")


if __name__ == "__main__":
    main()
