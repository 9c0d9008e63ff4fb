"""The columns: names, order, collisions, and their dictionary in the documentation."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import UsageError
from pipelines.predictions.schema import (
    OUR_COLUMNS,
    check_carried_names,
    check_class_columns,
    class_column,
    column_dictionary,
    column_order,
    dictionary_markdown,
    prediction_schema,
)


def test_columns_stand_in_the_documented_order() -> None:
    schema = prediction_schema(["Benign", "Malignant"], pa.schema([("patient_id", pa.string())]))
    assert " ".join(schema.names) == (
        "run_id image_uri frame frames image_version content_sha256 width height mean_intensity status error_code "
        "error_message predicted_class score p_benign p_malignant p_positive decision in_training_set model_name "
        "model_id preprocessing_id precision decoder scored_at scored_date patient_id"
    )
    assert schema.field("scored_at").type == pa.timestamp("us", tz="UTC")
    assert all(field.metadata[b"description"] for field in schema)


@pytest.mark.parametrize(
    ("name", "column"),
    [("Malignant", "p_malignant"), ("Grade II/III", "p_grade_ii_iii"), ("Übergang", "p_übergang"), (" a-b ", "p_a_b")],
)
def test_a_class_name_becomes_a_column(name: str, column: str) -> None:
    assert class_column(name) == column


@given(st.text(min_size=1))
def test_a_column_of_a_class_is_its_own_column(name: str) -> None:
    column = class_column(name)
    assert class_column(column.removeprefix("p_")) == column
    assert column == column.strip() and " " not in column


@pytest.mark.parametrize("classes", [["a b", "A-B"], ["positive", "x"], ["??", "x"], ["a", "a"], ["a\n", "b"]])
def test_classes_without_a_column_of_their_own_are_refused(classes: list[str]) -> None:
    with pytest.raises(UsageError):
        check_class_columns(classes)


@pytest.mark.parametrize(
    "name",
    [
        "status",
        "Status",
        "uri",
        "shard",
        "p_id",
        "P_id",
        "",
        "a\nb",
        "File_Row_Number",
        "nightread file",
        "nightread row",
    ],
)
def test_a_carried_name_that_is_ours_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        prediction_schema(["a", "b"], pa.schema([(name, pa.string())]))
    assert refused.value.cure
    with pytest.raises(UsageError):
        check_carried_names(pa.schema([(name, pa.string())]))


def test_a_manifest_without_further_columns_is_fine() -> None:
    check_carried_names(None)
    check_carried_names(pa.schema([("site", pa.string())]))


def test_carried_names_that_differ_in_case_only_are_refused() -> None:
    with pytest.raises(UsageError, match="'Site' and 'SITE'"):
        prediction_schema(["a", "b"], pa.schema([("Site", pa.string()), ("SITE", pa.string())]))


def test_a_grown_table_is_shown_in_reading_order() -> None:
    first = prediction_schema(["a", "b"], pa.schema([("site", pa.string())]))
    second = prediction_schema(["c"], None)
    grown = pa.unify_schemas([first, pa.schema([second.field("p_c")])])
    order = column_order(grown)
    assert order[order.index("score") : order.index("decision")] == ["score", "p_a", "p_b", "p_c", "p_positive"]
    assert order[-1] == "site"
    assert sorted(order) == sorted(grown.names)


def test_the_dictionary_names_every_column() -> None:
    names = [name for name, _, meaning in column_dictionary() if meaning]
    assert [name for name in names if name in OUR_COLUMNS] == list(OUR_COLUMNS)


def test_the_documented_dictionary_is_made_from_the_schema(checkout: Path) -> None:
    text = (checkout / "docs" / "results.md").read_text()
    section = text.partition("<!-- made from pipelines/predictions/schema.py -->\n")[2].partition("<!-- end -->")[0]
    assert section == dictionary_markdown(), "replace the section by what dictionary_markdown() returns"
