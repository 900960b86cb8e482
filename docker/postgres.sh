# Run by the image of Postgres once, on an empty volume: makes Dodo's database and its owner, who may create the roles
# that the processes work as, and is no superuser. The superuser itself is left without a password, and so without
# a way in over the network.
psql -v ON_ERROR_STOP=1 -U postgres -d postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE dodo LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE dodo OWNER dodo;
ALTER ROLE postgres PASSWORD NULL;
SQL
