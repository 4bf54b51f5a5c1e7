from tests.kmatrix.conftest import kronecker, seeded

__all__ = ["kronecker", "seeded"]
