"""Update a model with the events of a day: update, gate, lists for every user. An Airflow DAG of
standard operators.

Two things are set as Airflow variables or in the environment of the workers: ``SHOP_TRACKING`` (the
MLflow URI) and ``SHOP_RUNS`` (a folder, or s3://BUCKET/runs). A task fails by its exit code: 2, the
input is wrong; 1, the gate refuses (yesterday's champion keeps serving) or any other error. A retry
continues: ``--resume`` keeps what is done.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from airflow.operators.bash import BashOperator

ENVIRONMENT = "--tracking.uri $SHOP_TRACKING --run.dir $SHOP_RUNS/{{ ds }}"
UPDATE = (
    "recsys update --update.model models:/shop@champion --events '/data/events/*.parquet'"
    f" {ENVIRONMENT} --resume"
)
PROMOTE = (
    f"recsys promote --promote.model models:/shop@challenger --promote.rule not_worse {ENVIRONMENT}"
)
RECOMMEND = f"recsys recommend --recommend.model models:/shop@champion {ENVIRONMENT}"

with DAG(
    dag_id="shop_daily_update",
    schedule="15 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # the lock: a day waits for the previous day
    default_args={"retries": 1, "retry_delay": timedelta(minutes=10)},
) as dag:
    update = BashOperator(task_id="update", bash_command=UPDATE, append_env=True)
    promote = BashOperator(task_id="promote", bash_command=PROMOTE, append_env=True, retries=0)
    recommend = BashOperator(
        task_id="recommend", bash_command=RECOMMEND, append_env=True, trigger_rule="all_done"
    )
    update >> promote >> recommend
