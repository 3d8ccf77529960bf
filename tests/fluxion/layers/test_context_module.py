"""Modules that know the chain they are in."""

import pytest

import refiners.fluxion.layers as fl


class Declaring(fl.Chain):
    def init_context(self) -> dict[str, dict[str, int]]:
        return {"numbers": {"one": 1}, "empty": {}}


def test_an_orphan_has_no_parent() -> None:
    module = fl.ContextModule()
    assert module._parent == [] and module.parent is None and module.get_parents() == []
    assert fl.ContextModule._can_refresh_parent is True
    with pytest.raises(AssertionError, match="module does not have a parent"):
        _ = module.ensure_parent
    with pytest.raises(AssertionError):
        _ = module.provider


def test_the_parent_is_the_direct_chain_and_is_not_registered() -> None:
    use = fl.UseContext("numbers", "one")
    chain = fl.Chain(use)
    assert use.parent is chain and use.ensure_parent is chain
    assert isinstance(use._parent, list) and len(use._parent) == 1 and use._parent[0] is chain
    assert list(use.children()) == []


def test_the_parents_lead_to_the_root() -> None:
    use = fl.UseContext("numbers", "one")
    inner = fl.Chain(use)
    middle = fl.Sum(inner)
    root = fl.Chain(middle)
    assert [id(parent) for parent in use.get_parents()] == [id(inner), id(middle), id(root)]


def test_set_parent_wants_a_chain_that_holds_the_module() -> None:
    use, stranger = fl.UseContext("numbers", "one"), fl.Chain()
    chain = fl.Chain(use)
    with pytest.raises(AssertionError, match="UseContext.* not in Chain"):
        use._set_parent(stranger)
    assert use.parent is chain
    use._set_parent(None)
    assert use.parent is None
    use._set_parent(chain)
    assert use.parent is chain


def test_the_parent_of_a_parent_is_not_enough_for_set_parent() -> None:
    use = fl.UseContext("numbers", "one")
    root = fl.Chain(fl.Chain(use))
    with pytest.raises(AssertionError):
        use._set_parent(root)


def test_without_parent_refresh_set_parent_does_nothing() -> None:
    use = fl.UseContext("numbers", "one")
    chain = fl.Chain(use)
    with use.no_parent_refresh():
        use._set_parent(None)
        assert use.parent is chain
        use._set_parent(fl.Chain())
        assert use.parent is chain
    use._set_parent(None)
    assert use.parent is None


def test_parent_refresh_is_restored_to_what_it_was_also_after_an_error() -> None:
    use = fl.UseContext("numbers", "one")
    with pytest.raises(RuntimeError), use.no_parent_refresh():
        raise RuntimeError
    assert use._can_refresh_parent
    with use.no_parent_refresh():
        with use.no_parent_refresh():
            pass
        assert not use._can_refresh_parent


def test_the_provider_of_a_leaf_is_that_of_its_parent_and_of_a_chain_its_own() -> None:
    use = fl.UseContext("numbers", "one")
    inner = fl.Chain(use)
    root = Declaring(inner)
    assert use.provider is inner.provider
    assert inner.provider is not root.provider


def test_use_context_gives_the_live_dict() -> None:
    use = fl.UseContext("numbers", "one")
    root = Declaring(use)
    context = use.use_context("numbers")
    assert context == {"one": 1}
    assert context is root.use_context("numbers")
    assert use.use_context("empty") == {}


def test_an_unknown_context_is_an_error() -> None:
    use = fl.UseContext("numbers", "one")
    chain = fl.Chain(use)
    with pytest.raises(AssertionError, match="Context unknown not found."):
        use.use_context("unknown")
    with pytest.raises(AssertionError, match="Context unknown not found."):
        chain.use_context("unknown")


def test_the_path_starts_from_the_own_parent() -> None:
    use = fl.UseContext("numbers", "one")
    inner = fl.Chain(fl.Identity(), use)
    root = fl.Chain(inner, fl.Chain())
    assert use.get_path() == "Chain.Chain_1.UseContext"
    assert use.get_path(top=inner) == "Chain.UseContext"
    assert use.get_path(parent=inner) == "Chain.Chain_1.UseContext"
    with pytest.raises(ValueError, match="UseContext"):
        use.get_path(parent=root)
