from hypothesis import given
from hypothesis import strategies as st

from sq.config.schema import leaves
from sq.report.distinct import ABSENT, columns, distinct

leaf = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.0, 1.0, 2.5])
    | st.sampled_from(["a", "b"])
)
values = leaf | st.lists(leaf, max_size=2)
names = st.sampled_from(["x", "y", "z"])
parts = st.dictionaries(
    names, values | st.dictionaries(names, values, min_size=1, max_size=2), max_size=3
)


@given(st.lists(parts, min_size=1, max_size=6))
def test_columns_hold_what_runs_hold(runs):
    made = columns(runs)
    flat = [leaves(own) for own in runs]
    assert set(made) == {name for own in flat for name in own}
    for name, column in made.items():
        for own, settings in zip(range(len(runs)), flat, strict=True):
            place = 0 if "all" in column else column["of"][own]
            found = [column["all"]] if "all" in column else column["values"]
            assert (place >= 0) == (name in settings)
            if place >= 0:
                assert repr(found[place]) == repr(settings[name])


def test_types_are_told_apart():
    assert distinct([4, 4.0, True, 1, "1", ABSENT, [1], [True], 4]) == (
        [4, 4.0, True, 1, "1", [1], [True]],
        [0, 1, 2, 3, 4, -1, 5, 6, 0],
    )


def test_what_all_share_is_kept_once():
    assert columns([{"a": {"b": 1}}, {"a": {"b": 1}}]) == {"a.b": {"all": 1}}
    assert columns([{"a": 1}, {}]) == {"a": {"values": [1], "of": [0, -1]}}
