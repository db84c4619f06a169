"""Libraries as the program describes them, and the records that workers get."""

from __future__ import annotations

import functools
import json
import os
import pickle
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from windlass.errors import UnknownName, UsageError
from windlass.manager.library import Library
from windlass.messages import MAX_FRAME_BYTES, ImportSpec, InstanceId, LibrarySpec, Resources, StartLibrary
from windlass.object_store import ObjectStore


def double(x: float) -> float:
    return 2 * x


def encoded(x: object) -> str:
    return json.dumps(x)


def start(size: int, name: str = "data") -> dict[str, list[int]]:
    return {name: [0] * size}


def numbers() -> Iterator[int]:
    yield 1


async def later() -> int:
    return 1


async def many_later() -> AsyncIterator[int]:
    yield 1


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, x: int) -> int:
        return x + self.amount

    def add(self, x: int) -> int:
        return x + self.amount


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(tmp_path / "store", 1 << 30)
    yield store
    store.close()


class TestFunctions:
    def test_they_are_known_by_name(self) -> None:
        library = Library("lib", double, encoded)
        assert library.functions == {"double": double, "encoded": encoded}
        assert library.function("double") is double
        assert repr(library) == "Library('lib', double, encoded, mode='direct', not installed)"

    def test_an_unknown_one_is_refused_with_near_names(self) -> None:
        with pytest.raises(UnknownName, match=r"^there is no function 'duoble'; did you mean 'double'\? \(in library 'lib'\)"):
            Library("lib", double).function("duoble")

    def test_lambdas_methods_partials_and_objects_get_names(self) -> None:
        plus: Callable[[int], int] = lambda x: x + 1  # noqa: E731 - a lambda is what is tested
        library = Library("lib", double, plus, Adder(1).add, functools.partial(encoded, 3), Adder(2))
        assert list(library.functions) == ["double", "lambda_2", "add", "encoded", "Adder"]

    def test_the_same_function_twice_is_one(self) -> None:
        assert list(Library("lib", double, double).functions) == ["double"]

    def test_two_of_one_name_are_refused(self) -> None:
        with pytest.raises(UsageError, match="library 'lib' has two functions named 'add'; rename one of them"):
            Library("lib", Adder(1).add, Adder(2).add)

    @pytest.mark.parametrize(
        ("function", "text"),
        [
            (numbers, r"^numbers\(\) in library 'lib' is a generator function, which cannot be called remotely; let it return a list"),
            (functools.partial(numbers), r"numbers\(\) in library 'lib' is a generator function"),
            (many_later, r"many_later\(\) in library 'lib' is an async generator function, .* let it return a list"),
            ("double", "'double' is not a function; write the function itself, without quotes or brackets"),
        ],
    )
    def test_what_cannot_be_called_is_refused_at_once(self, function: Any, text: str) -> None:
        with pytest.raises(UsageError, match=text):
            Library("lib", function)


class TestChecks:
    @pytest.mark.parametrize("name", ["lib", "my-lib.v2", "größe", "a" * 100])
    def test_names_that_are_fine(self, name: str) -> None:
        assert Library(name).name == name

    @pytest.mark.parametrize(
        ("name", "instead"), [("my lib", "my_lib"), ("a/b", "a_b"), ("lib@2", "lib_2"), ("", "lib"), ("2nd", "lib_2nd"), ("x\n", "x")]
    )
    def test_other_names_are_refused_with_one_to_write(self, name: str, instead: str) -> None:
        with pytest.raises(UsageError) as caught:
            Library(name)
        assert str(caught.value).endswith(f"write {instead!r}")
        assert Library(instead).name == instead

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"mode": "threads"}, "mode='threads'; write mode='direct' or mode='fork'"),
            ({"start": "exec"}, "start='exec'; write start='fork' or start='spawn'"),
            (
                {"mode": "fork", "start": "spawn"},
                "mode='fork' forks a warm process for each call and start='spawn' forbids forks; write one of them",
            ),
            ({"slots": 0}, "slots=0 cannot be; write slots=1 or more, or leave it out"),
            ({"slots": 2.5}, "slots=2.5 is a float; slots is a whole number: write slots=2"),
            ({"threads": -1}, "threads=-1 is negative; write threads=1, or leave it out"),
            ({"memory": 100}, "memory=100 is 100 bytes; write memory='100MB' (or 'GB')"),
            ({"start_timeout": 0}, "start_timeout=0 leaves no time; write start_timeout=90 (seconds), or start_timeout=None for 5 minutes"),
            ({"env": ["A=1"]}, "env=['A=1']; write env={'NAME': 'value'}"),
            ({"env": {"A": 1}}, "env={'A': 1}: names and values are texts; write env={'A': '1'}"),
            ({"env": {"A=B": "1"}}, "env has 'A=B': a variable's name has no '=' and neither has a zero byte"),
            ({"python": "2.7"}, "python='2.7'; write the version of the instances' Python, as in python='3.11'"),
            ({"imports": 3}, "imports=3; write imports=[numpy, 'scipy.stats'], or imports='auto'"),
            ({"imports": [3]}, "imports= has 3, neither a module nor a name; write imports=[numpy, 'scipy.stats']"),
            (
                {"imports": ["import json"]},
                "imports= has 'import json', which is no module's name; write it as in an import statement: 'package.module'",
            ),
            ({"context": 5}, "context=5; write context=function, or context=(function, [args], {'name': value})"),
            ({"share_context": True}, "share_context=True without a context shares nothing; write context=function, share_context=True"),
        ],
    )
    def test_what_cannot_be_is_refused_with_the_right_line(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(UsageError) as caught:
            Library("lib", double, **options)
        assert str(caught.value) == text

    def test_a_function_where_the_name_belongs_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"the name comes first; write create_library\('lib', function, \.\.\.\)"):
            Library(double)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class TestSpec:
    def test_it_has_all_that_was_asked_for(self, store: ObjectStore) -> None:
        spec = Library(
            "lib",
            double,
            imports=[json, "xml.dom"],
            context=(start, [3], {"name": "x"}),
            share_context=True,
            slots=4,
            mode="fork",
            cores=2,
            memory=1 << 30,
            gpus=1,
            threads=3,
            env={"B": "2", "A": "1"},
            start_timeout=60,
            max_calls=100,
        ).spec(store.put)
        assert spec.id.startswith("lib@")
        assert (spec.name, spec.python) == ("lib", sys.version_info[:2])
        assert spec.imports == (ImportSpec("json", explicit=True), ImportSpec("xml.dom", explicit=True))
        assert (spec.share_context, spec.slots, spec.mode, spec.start) == (True, 4, "fork", "fork")
        assert (spec.per_slot, spec.threads, spec.start_timeout, spec.max_calls) == (Resources(2.0, 1 << 30, 1), 3, 60.0, 100)
        assert spec.env == (("A", "1"), ("B", "2"))
        assert [each.name for each in spec.functions] == ["double"]

    def test_functions_travel_under_the_librarys_names(self, store: ObjectStore) -> None:
        spec = Library("lib", lambda: 1, Adder(2)).spec(store.put)
        assert [each.name for each in spec.functions] == ["lambda_1", "Adder"]
        assert len({each.id for each in spec.functions}) == 2

    def test_functions_that_together_are_too_large_for_a_message_travel_as_objects(self, store: ObjectStore) -> None:
        """Each alone is small enough; the record of all of them, with a context of the largest size beside it, must fit one frame."""

        def holding(number: int) -> Callable[[], int]:
            data = os.urandom(40_000)
            function = lambda: len(data)  # noqa: E731
            function.__name__ = f"f{number}"
            return function

        functions = [holding(number) for number in range(40)]
        spec = Library("lib", *functions, double, context=(start, [b"x" * 520_000])).spec(store.put)
        assert len(msgspec.msgpack.encode(StartLibrary(InstanceId(1), spec, 2))) < MAX_FRAME_BYTES
        for each in spec.functions:
            assert (each.object is None) == bool(each.blob)
            blob = each.blob if each.object is None else store.open(each.object.name)
            function = pickle.loads(blob)
            assert (function(2) == 4) if each.name == "double" else (function() == 40_000)
        assert Library("lib", *functions).spec(store.put).id == Library("lib", *functions).spec(store.put).id
        assert all(each.object is None for each in Library("lib", *functions[:2], double).spec(store.put).functions)

    def test_automatic_imports_are_found_and_explicit_ones_come_first(self, store: ObjectStore) -> None:
        automatic = Library("lib", encoded).spec(store.put)
        assert ImportSpec("json") in automatic.imports
        both = Library("lib", encoded, imports=["auto", "json", "zipfile"]).spec(store.put)
        assert both.imports[:2] == (ImportSpec("json", explicit=True), ImportSpec("zipfile", explicit=True))
        assert [each.module for each in both.imports].count("json") == 1
        assert Library("lib", encoded, imports=None).spec(store.put).imports == ()
        assert Library("lib", encoded, imports="zipfile").spec(store.put).imports == (ImportSpec("zipfile", explicit=True),)

    @pytest.mark.parametrize("context", [functools.partial(start, 3), (start, [3]), [start, (3,), {}], (start, [3], None)])
    def test_a_context_is_a_function_with_its_arguments(self, store: ObjectStore, context: Any) -> None:
        spec = Library("lib", double, context=context).spec(store.put)
        function, args, kwargs = pickle.loads(spec.context)
        assert function(*args, **kwargs) == {"data": [0, 0, 0]}

    def test_a_context_with_large_arguments_is_refused(self, store: ObjectStore) -> None:
        with pytest.raises(
            UsageError, match=r"the context of library 'lib' takes [\d,]+ bytes to send \(most: 524,288\); let the context function"
        ):
            Library("lib", double, context=(start, [b"x" * 600_000])).spec(store.put)

    def test_local_modules_travel_as_snapshots(self, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "wl_test_helpers.py").write_text("def helped(x):\n    return x + 1\n")
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        spec = Library("lib", double, imports=["wl_test_helpers"]).spec(store.put)
        assert len(spec.code) == 1
        assert store.has(spec.code[0].name)

    def test_its_id_covers_everything(self, store: ObjectStore) -> None:
        variants: list[LibrarySpec] = [
            Library("lib", double).spec(store.put),
            Library("lib2", double).spec(store.put),
            Library("lib", double, encoded).spec(store.put),
            Library("lib", double, imports=["json"]).spec(store.put),
            Library("lib", double, slots=2).spec(store.put),
            Library("lib", double, env={"A": "1"}).spec(store.put),
            Library("lib", double, context=(start, [1])).spec(store.put),
            Library("lib", double, context=(start, [2])).spec(store.put),
        ]
        assert len({each.id for each in variants}) == len(variants)
        assert Library("lib", double).spec(store.put) == variants[0]

    def test_its_id_is_the_same_in_another_process(self, store: ObjectStore, tmp_path: Path) -> None:
        """So a program that runs again finds its library warm."""
        import subprocess

        program = tmp_path / "program.py"
        program.write_text(
            textwrap.dedent("""
            import sys
            from pathlib import Path
            from windlass.manager.library import Library
            from windlass.object_store import ObjectStore
            def double(x):
                return 2 * x
            store = ObjectStore(Path(sys.argv[1]), 1 << 30)
            print(Library("lib", double, lambda x: {"a", "b", x}, imports=["json"]).spec(store.put).id)
            store.close()
            """)
        )
        ids = [
            subprocess.run(
                [sys.executable, program, tmp_path / f"store{seed}"],
                check=True,
                capture_output=True,
                text=True,
                env={"PYTHONHASHSEED": seed},
            )
            for seed in "12"
        ]
        assert ids[0].stdout == ids[1].stdout
        assert ids[0].stdout.startswith("lib@")


class TestTaskVine:
    def test_create_library_from_functions_is_understood(self, store: ObjectStore) -> None:
        library = Library.from_functions(
            "lib", double, hoisting_modules=[json, double], exec_mode="fork", library_context_info=[start, [2], {}], add_env=False
        )
        spec = library.spec(store.put)
        assert spec.mode == "fork"
        assert ImportSpec("json", explicit=True) in spec.imports
        assert pickle.loads(spec.context)[1] == (2,)
        assert Library.from_functions("lib", double).spec(store.put).mode == "fork"

    def test_hoisting_modules_of_other_kinds_are_refused(self) -> None:
        with pytest.raises(UsageError, match=r"hoisting_modules has 3; write modules, as in hoisting_modules=\[numpy\]"):
            Library.from_functions("lib", double, hoisting_modules=[3])

    def test_setters_are_for_the_whole_library_and_divided_among_slots(self, store: ObjectStore) -> None:
        library = Library("lib", double)
        library.set_function_slots(4)
        library.set_cores(8)
        library.set_memory(4096)
        library.set_gpus(4)
        library.set_function_exec_mode("fork")
        spec = library.spec(store.put)
        assert (spec.slots, spec.per_slot, spec.mode) == (4, Resources(2.0, 1 << 30, 1), "fork")

    def test_what_taskvines_programs_say_of_libraries_as_of_tasks_is_done_or_refused_with_what_to_write(self, store: ObjectStore) -> None:
        library = Library("lib", double, env={"LANG": "C", "WORD": "old", "GOES": "x"})
        library.set_cores(1)
        library.set_disk(2000)
        library.set_env_var("WORD", "lass")
        library.set_env_var("GOES")
        library.set_function_exec_mode_from_string("fork")
        refused: list[tuple[Callable[[Any], object], str]] = [
            (library.set_disk, "disk"),
            (lambda file: library.set_env_var("A=B", "x"), "a variable's name has no '='"),
            (lambda file: library.add_input(file, "data"), "library_context_info"),
            (library.add_environment, "poncho_env='packed.tar.gz'"),
            (library.add_poncho_package, "poncho_env='packed.tar.gz'"),
        ]
        for write, text in refused:
            with pytest.raises(UsageError, match=text):
                write("file")
        spec = library.spec(store.put)
        assert (spec.slots, spec.mode, spec.env) == (1, "fork", (("LANG", "C"), ("WORD", "lass")))
        with pytest.raises(UsageError, match=r"set_env_var\(\) would change nothing"):
            library.set_env_var("WORD", "late")

    def test_without_slots_there_is_one_per_core(self, store: ObjectStore) -> None:
        library = Library("lib", double)
        library.set_cores(8)
        spec = library.spec(store.put)
        assert (spec.slots, spec.per_slot.cores) == (8, 1.0)

    def test_a_share_that_cannot_be_told_is_refused(self, store: ObjectStore) -> None:
        library = Library("lib", double)
        library.set_memory(4096)
        with pytest.raises(UsageError, match=r"set_memory\(\) is for all slots of it together, so say how many: set_function_slots\(4\)"):
            library.spec(store.put)
        library.set_function_slots(4)
        library.set_gpus(2)
        with pytest.raises(UsageError, match=r"2 GPUs cannot be divided among 4 slots; write set_function_slots\(2\)"):
            library.spec(store.put)

    def test_a_setter_after_installation_is_refused(self, store: ObjectStore) -> None:
        library = Library("lib", double)
        library.spec(store.put)
        with pytest.raises(
            UsageError, match=r"library 'lib' is installed, so set_cores\(\) would change nothing; call it before install_library\(\)"
        ):
            library.set_cores(2)
