"""A sweep whose cells are told by different settings has a column for each of them."""

from pipelines.training.selection import as_csv, columns_of


def test_what_only_some_cells_have_is_a_column_where_they_have_it():
    lines = [{"objective": "none", "seed": 0, "val": 0.5}, {"objective": "kd", "prec": 2.0, "seed": 0, "val": 0.6}]

    assert columns_of(lines) == ["objective", "prec", "seed", "val"]
    assert as_csv(lines).decode().splitlines() == ["objective,prec,seed,val", "none,,0,0.5", "kd,2.0,0,0.6"]
    assert columns_of([]) == []
