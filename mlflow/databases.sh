#!/bin/sh
# PostgreSQL's image runs this once, on an empty volume: a role and a database of its own for each server.
set -eu
psql --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv mlflow MLFLOW_DB_PASSWORD
\getenv dagster DAGSTER_DB_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE dagster OWNER dagster;
REVOKE ALL ON DATABASE mlflow, dagster FROM PUBLIC;
SQL
