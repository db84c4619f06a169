"""Results that stay on workers: which call made each, and how one that was lost is made again.

Theory of operation
-------------------
A call with ``keep`` leaves the parts of its result in its worker's cache, under names that are the same whenever it runs (`CallSpec.keep`).
The manager knows who has them (`windlass.manager.replicas`) and, here, the call that makes them.  When nobody has one any more that a call
needs, or the program asks for, the call is run again (a *remake*), at most `REMAKES_MOST` times; calls that need the result are *parked*
in no queue meanwhile, so that they hold no slot that the remake might need.  What that call needs itself may be gone too, and is made
again in turn.

The program lets go of a result when nobody can ask for it any more.  What made it is remembered as long as results that were made *of it*
are (``users``).  The arguments of a remake are as they were: large ones are kept by the program for as long as it keeps the result.

A core: pure books, which `windlass.manager.core.Core` asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from windlass.messages import CallId, CallSpec, FileName, LibraryId

#: Times that one result may be made again.
REMAKES_MOST: Final = 3
#: And when it was evicted, or its worker left in order.
EVICTIONS_MOST: Final = 50
#: Ids of remakes: above all that programs' calls have.
FIRST_REMAKE: Final = 1 << 62


class Product(msgspec.Struct, eq=False):
    """The parts of one kept result."""

    spec: CallSpec
    names: tuple[FileName, ...]
    remakes: int = 0
    #: Times that it was made again though no worker was lost.
    evictions: int = 0
    #: The remake under way; 0: none.
    call: CallId = CallId(0)
    #: Products that were made of this one.
    users: int = 0
    #: Nobody can ask for it any more but a remake of those.
    released: bool = False


class Lineage:
    """All results that stay on workers."""

    def __init__(self) -> None:
        self.products: dict[FileName, Product] = {}
        #: How many of them each library version has made; those that have made none are left out.
        self._made_by: Counter[LibraryId] = Counter()
        self.remakes: dict[CallId, Product] = {}
        self._next = FIRST_REMAKE
        #: Products that will not be made again: the call that made each, and its parts; for the shell to tell its program.
        self.forgotten: list[tuple[CallId, tuple[FileName, ...]]] = []

    def expect(self, spec: CallSpec, names: tuple[FileName, ...], *, under_way: bool = True) -> None:
        """A call will leave these on a worker; it is under way, or (then it is no remake yet) will be when one of them is needed."""
        product = self._new(spec, names)
        if under_way:
            product.call = spec.call
            self.remakes[spec.call] = product
        else:
            product.remakes = -1
        for name in names:
            self._enter(name, product)

    def made(self, spec: CallSpec, names: tuple[FileName, ...]) -> tuple[Product, tuple[FileName, ...]]:
        """A call, or its remake, has left these on a worker; and what was expected of it and is not among them."""
        gone: tuple[FileName, ...] = ()
        product = self.remakes.pop(spec.call, None)
        if product is None:
            product = self._new(spec, names)
        else:
            product.call = CallId(0)
            gone = tuple(name for name in product.names if name not in names)
            for name in product.names:
                self._strike(name)
            product.names = names
        for name in names:
            self._enter(name, product)
        if product.released:
            self._forget(product)
        return product, gone

    def remake(self, name: FileName, *, lost: bool = True) -> CallSpec | str | None:
        """A result is gone (``lost``: with a worker that was lost): the call that makes it again; None while one is under way; or why
        there can be none."""
        product = self.products.get(name)
        if product is None:
            return f"result {name} was lost with its worker, and nobody knows what made it"
        if product.call:
            return None
        if product.remakes >= REMAKES_MOST:
            return f"the result was lost with its workers {product.remakes + 1} times; keep it in the program, or on fewer, safer pilots"
        if not lost and product.evictions >= EVICTIONS_MOST:
            times = product.evictions + 1
            return f"the result had to make room, or left with its worker, {times} times: the caches of the workers are too small"
        product.remakes += lost or product.remakes < 0
        product.evictions += not lost
        product.call = CallId(self._next)
        self._next += 1
        self.remakes[product.call] = product
        return msgspec.structs.replace(product.spec, call=product.call)

    def failed(self, call: CallId) -> tuple[FileName, ...]:
        """A call that was to make something has ended without it: what cannot be had therefore; empty when this was none."""
        product = self.remakes.pop(call, None)
        if product is None:
            return ()
        product.call = CallId(0)
        if product.released:
            self._forget(product)
        return product.names

    def released(self, names: Iterable[FileName]) -> None:
        """The program needs these no more."""
        for name in names:
            product = self.products.get(name)
            if product is not None and not product.released:
                product.released = True
                self._forget(product)

    def borrowed(self, product: Product) -> list[FileName]:
        """What is there again though nobody can ask for it: what this product, which has been made, was made of; or the product itself."""
        itself = product.names if product.released and not product.users else ()
        return [*itself, *(name for source in self._sources(product) if source.released for name in source.names)]

    def needs(self, library: LibraryId) -> bool:
        """Calls of this library version may have to be run again, for what they have made."""
        return library in self._made_by

    def _new(self, spec: CallSpec, names: tuple[FileName, ...]) -> Product:
        product = Product(spec, names)
        for source in self._sources(product):
            source.users += 1
        return product

    def _sources(self, product: Product) -> list[Product]:
        found = {id(one): one for ref in product.spec.inputs if (one := self.products.get(ref.name)) is not None}
        return list(found.values())

    def _enter(self, name: FileName, product: Product) -> None:
        self._strike(name)
        self.products[name] = product
        self._made_by[product.spec.library] += 1

    def _strike(self, name: FileName) -> None:
        product = self.products.pop(name, None)
        if product is not None:
            library = product.spec.library
            self._made_by[library] -= 1
            if not self._made_by[library]:
                del self._made_by[library]

    def _forget(self, product: Product) -> None:
        waiting = [product]
        while waiting:
            one = waiting.pop()
            if one.users or not one.released or one.call:
                continue
            for source in self._sources(one):
                source.users -= 1
                waiting.append(source)
            for name in one.names:
                self._strike(name)
            self.forgotten.append((one.spec.call, one.names))

    def check(self) -> None:
        """Invariants between the collections; raises AssertionError."""
        users: dict[int, int] = {}
        for product in {id(one): one for one in self.products.values()}.values():
            assert bool(product.call) == (product.call in self.remakes)
            for source in self._sources(product):
                users[id(source)] = users.get(id(source), 0) + 1
        for product in self.products.values():
            assert product.users == users.get(id(product), 0), f"{product.users} users counted, {users.get(id(product), 0)} there"
        made_by = Counter(product.spec.library for product in self.products.values())
        assert made_by == self._made_by, f"made: {made_by}, counted {self._made_by}"
        assert all(self._made_by.values())


def products_of(spec: CallSpec) -> tuple[FileName, ...]:
    """The files that a call makes beside its result."""
    if spec.sandbox is None:
        return ()
    made = [name for _, name in spec.sandbox.outputs]
    return (*made, spec.sandbox.returned) if spec.sandbox.returned else tuple(made)
