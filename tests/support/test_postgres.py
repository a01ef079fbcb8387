import pytest
import sqlalchemy

from tests.support import postgres


@pytest.mark.real
def test_a_database_answers_until_the_block_ends() -> None:
    with postgres.running() as url:
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("create table t (n integer)"))
            connection.execute(sqlalchemy.text("insert into t values (1), (2)"))
            assert connection.scalar(sqlalchemy.text("select sum(n) from t")) == 3
        engine.dispose()
    with pytest.raises(sqlalchemy.exc.OperationalError), engine.connect():
        pass
    engine.dispose()
