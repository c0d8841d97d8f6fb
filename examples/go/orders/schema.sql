CREATE SCHEMA shop;
CREATE TABLE shop.stock (item text PRIMARY KEY, quantity integer NOT NULL CHECK (quantity >= 0));
CREATE TABLE shop.orders (task text NOT NULL, item text NOT NULL REFERENCES shop.stock, quantity integer NOT NULL);
INSERT INTO shop.stock VALUES ('lamp', 10);
