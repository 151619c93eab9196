"""A project of two apps, which is moved from django_dramatiq's AdminMiddleware to the log."""

import pymysql

# In the place of mysqlclient, which needs a compiler.
pymysql.install_as_MySQLdb()
