"""A source says which fields it has."""

import pytest

from pipeline.sources.source import BadData, Interacting, Source


def test_fields_have_known_kinds_and_free_names():
    with pytest.raises(BadData, match="kind of field 'age' must be one of categorical, numeric, bag, got 'number'"):
        Source({"age": "number"}, [], "the log")
    with pytest.raises(BadData, match="no field may have the name 'time'; rename it"):
        Source({"time": "categorical"}, [], "the log")
    with pytest.raises(BadData, match="there is no field"):
        Source({}, [], "the log")


@pytest.mark.parametrize(
    ("fields", "roles", "message"),
    [
        ({"age": "numeric"}, {}, "'age' must have the role 'user' or 'item'; correct the roles"),
        ({"age": "numeric"}, {"age": "context"}, "'age' must have the role 'user' or 'item', got 'context'"),
        ({}, {"age": "user"}, "'age' is no field"),
        ({"basket": "categorical"}, {"basket": "user"}, "no field of interactions may have the name 'basket'"),
    ],
)
def test_every_field_of_interactions_describes_a_user_or_an_item(fields, roles, message):
    keys = {"customer": "categorical", "product": "categorical"}
    about = Interacting({"customer": "user", "product": "item"} | roles, "customer", "product")
    with pytest.raises(BadData, match=message):
        Source(keys | fields, [], "the log", interactions=about)


def test_user_and_item_are_identified_by_categorical_fields_of_their_roles():
    roles = {"customer": "user", "product": "item"}
    for kind, user in (("categorical", "product"), ("categorical", "nobody"), ("bag", "customer")):
        with pytest.raises(
            BadData, match=f"identifies the user must be a categorical field of role 'user', got '{user}'"
        ):
            Source(
                {"customer": kind, "product": "categorical"},
                [],
                "the log",
                interactions=Interacting(roles, user, "product"),
            )
