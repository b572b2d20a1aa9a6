"""What experiments of the tests share; nothing is imported here, as workers load it when they begin."""


class Formula:
    """An experiment that says no more of itself than it must."""

    dtype: str

    @property
    def other_dtype(self) -> str | None:
        return None

    devices = ("cpu",)
    serial = False
    block = None

    @property
    def precision(self) -> str:
        return self.dtype

    def whole(self, axis: str) -> bool:
        return False

    def review(self, points, seed: int) -> list[str]:
        return []

    def label(self, axis: str) -> str:
        return axis

    def magnitude(self, axis: str, seed: int) -> float:
        return 0.0

    def contract(self, seed: int) -> dict[str, str]:
        return {}
