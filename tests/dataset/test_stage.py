from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from trainkit.dataset.select import EVAL, TRAIN
from trainkit.dataset.stage import Stage

rows = st.lists(st.tuples(st.sampled_from([TRAIN, EVAL]), st.booleans()), max_size=6)


def line(number: int, *, with_image: bool) -> bytes:
    return b'{"n":%d,"images":[%s],"text":"\\"images\\":[],"}\n' % (number, b'"a"' if with_image else b"")


@given(st.lists(st.tuples(rows, st.booleans()), max_size=5))
def test_rows_with_images_come_first_and_what_is_taken_back_was_never_there(
    groups: list[tuple[list[tuple[str, bool]], bool]],
) -> None:
    """Each group of rows is kept or taken back."""
    kept: dict[tuple[str, bool], list[bytes]] = {
        (side, with_image): [] for side in (TRAIN, EVAL) for with_image in (True, False)
    }
    with tempfile.TemporaryDirectory() as name:
        with Stage(Path(name)) as stage, Stage(None) as counting, Stage(None) as only_kept:
            number = 0
            for group, is_kept in groups:
                marks = stage.mark(), counting.mark()
                for side, with_image in group:
                    number += 1
                    row = line(number, with_image=with_image)
                    stage.add(side, row)
                    counting.add(side, row)
                    if is_kept:
                        only_kept.add(side, row)
                        kept[side, with_image].append(row)
                if not is_kept:
                    stage.cut(marks[0])
                    counting.cut(marks[1])
        expected = {f"{side}.jsonl": b"".join(kept[side, True] + kept[side, False]) for side in (TRAIN, EVAL)}
        expected = {file: content for file, content in expected.items() if content}
        described = {
            f"{side}.jsonl": {
                "rows": len(kept[side, True] + kept[side, False]),
                "bytes": len(expected[f"{side}.jsonl"]),
                "rows_with_images": len(kept[side, True]),
            }
            for side in (TRAIN, EVAL)
            if f"{side}.jsonl" in expected
        }
        assert stage.settle() == counting.settle() == only_kept.settle() == described
        assert {path.name: path.read_bytes() for path in Path(name).iterdir()} == expected
        assert stage.digest.digest() == counting.digest.digest() == only_kept.digest.digest()
        found = [(variant.name, variant.num_rows, variant.side) for variant in stage.variants("x")]
        names = {TRAIN: "x", EVAL: "x_eval"}
        assert found == [
            (names[side], described[f"{side}.jsonl"]["rows"], side)
            for side in (TRAIN, EVAL)
            if f"{side}.jsonl" in described
        ]
