#!/bin/sh
# Runs once, when PostgreSQL makes its first cluster: one database and one role for each service that keeps state.
# The passwords were minted by `provision`; no role can reach the other's database.
set -eu

for role in ingest audit; do
    psql --set ON_ERROR_STOP=1 --username postgres --set "role=$role" \
        --set "password=$(cat "/run/stepwedge/$role.password")" <<'SQL'
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE ALL ON DATABASE :"role" FROM PUBLIC;
SQL
done
