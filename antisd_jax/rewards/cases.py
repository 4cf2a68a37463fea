"""A test program taken apart into cases, so that each is counted and a failed one does not end the others.

A case is an `assert`, a statement that hands a value of the program under test on (`check_equal(candidate(x), y)`), or a
`try … except` or `with` around a call of it, wherever it stands, once for each time that it runs; what such a statement runs in
turn belongs to the case. A value that the program could not give (`out = candidate(x)` that raised) fails the cases that use it;
a bare call (`candidate(x)`, to change x) is no case. Where either raises, the next case fails.
"""

import ast
import builtins
import symtable

GUARD = "__cases__"


class Missing:
    """In the place of a value that could not be had: whatever is done with it raises."""

    def __init__(self, reason: BaseException):
        object.__setattr__(self, "_reason", reason)

    __class__ = property(lambda self: _raise(self))  # isinstance asks for it


def _raise(self, *_):
    raise object.__getattribute__(self, "_reason")


_USES = (
    "eq ne lt le gt ge bool hash iter next len contains getitem setitem call getattr setattr str repr format add radd sub rsub mul rmul"
    " truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg pos abs int float index round enter exit and rand or ror xor rxor invert"
)
for _use in _USES.split():
    setattr(Missing, f"__{_use}__", _raise)


class Cases:
    """The count, kept while the test program runs. Once `over` says so, cases are only counted."""

    def __init__(self, over=lambda: False):
        self.passed = self.total = 0
        self.open: list[bool] = []  # of each case that is being run, one in another: has it failed?
        self.stumbled = self.bare_call = False
        self.over = over

    def enter(self) -> bool:
        """True when the case's statement shall run."""
        nested = bool(self.open)
        self.open.append(not nested and (self.over() or self.stumbled))
        if not nested:
            self.total += 1
            self.stumbled = False
        return not self.open[-1]

    def failed(self, error: BaseException) -> None:
        """The statement raised; a failure inside another case is that one's."""
        self.open[-1] = True
        if len(self.open) > 1:
            raise error

    def leave(self) -> None:
        """After the statement, however it was left."""
        failed = self.open.pop()
        if not self.open and not failed:
            self.passed += 1

    def value(self, make):
        """make(), or what stands for it when the program fails, and then fails the next case; inside a case the failure is its."""
        if self.open:
            return make()
        try:
            if self.over():
                raise TimeoutError("no time is left")
            return make()
        except Exception as e:
            self.stumbled = True
            return Missing(e)

    def bare(self, make) -> None:
        """make(), for what it does to its arguments."""
        self.bare_call = True
        try:
            self.value(make)
        finally:
            self.bare_call = False

    def end(self) -> tuple[int, int]:
        """(passed, in all); a call that failed with no case after it is one."""
        return self.passed, self.total + self.stumbled


class _Taking(ast.NodeTransformer):
    def __init__(self, under_test: set[str]):
        self.under_test = under_test

    def names(self, node) -> bool:
        return any(isinstance(n, ast.Name) and n.id in self.under_test for n in ast.walk(node))

    def calls(self, node) -> bool:
        return any(isinstance(n, ast.Call) and self.names(n.func) for n in ast.walk(node))

    def visit_Assert(self, node):
        return self.case(node)

    def visit_Expr(self, node):
        if not self.calls(node):
            return node
        if isinstance(node.value, ast.Call) and self.names(node.value.func):
            return ast.Expr(_guard("bare", _later(node.value)))
        return self.case(node)

    def visit_Assign(self, node):
        if self.calls(node.value):
            node.value = _guard("value", _later(node.value))
        return node

    def visit_Try(self, node):
        """One case, unless its handlers would swallow the failure of an assert that stands in it."""
        whole = node.handlers and any(map(self.calls, node.body)) and not (_asserts(node.body) and any(map(_catches_all, node.handlers)))
        return self.case(node) if whole else self.generic_visit(node)

    def visit_With(self, node):
        return self.case(node) if any(map(self.calls, node.body)) and not _asserts(node.body) else self.generic_visit(node)

    def case(self, node):
        enter = ast.If(_guard("enter"), [node], [])
        failed = ast.Expr(_guard("failed", ast.Name("__error__", ast.Load())))
        inner = ast.Try([enter], [ast.ExceptHandler(ast.Name("BaseException", ast.Load()), "__error__", [failed])], [], [])
        return ast.Try([inner], [], [], [ast.Expr(_guard("leave"))])


def _asserts(body: list) -> bool:
    return any(isinstance(n, ast.Assert) for statement in body for n in ast.walk(statement))


def _catches_all(handler: ast.ExceptHandler) -> bool:
    names = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else {"BaseException"}
    return bool(names & {"AssertionError", "Exception", "BaseException"})


def _guard(verb: str, *args):
    return ast.Call(ast.Attribute(ast.Name(GUARD, ast.Load()), verb, ast.Load()), list(args), [])


def _later(value):
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    return ast.Lambda(nothing, value)


def free_names(tests: str, entry_point: str = "") -> set[str]:
    """Names that a test program uses and nobody defines: what it expects of the program under test; the entry point, too.

    A name of Python's own is never among them: else a program could put its `enumerate` in the place of the tests'.
    """
    top = symtable.symtable(tests, "tests.py", "exec")
    used, scopes = set(), [top]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        used |= {s.get_name() for s in scope.get_symbols() if s.is_referenced() and (s.is_global() or scope is top)}
    made = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return used - made - set(dir(builtins)) - {"__name__", "__file__"} | ({entry_point} if entry_point else set())


def take_apart(tree: ast.Module, under_test: set[str]):
    """The code object of the test program with its cases guarded; run it with GUARD set to a Cases."""
    return compile(ast.fix_missing_locations(_Taking(under_test).visit(tree)), "tests.py", "exec")
